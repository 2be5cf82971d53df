-- Grain: one model and one rule: whether the pictures that it gave back lie where its training pictures are sparse.
-- Source: densities (mean l2 of each training picture to its nearest ones, by transforms/results/sweeps.py); attacked
-- (staging), untargeted_generations, model_members. Pictures that stood there once, no canaries. log_odds: of being
-- extracted, for each standard deviation of the logarithm of that distance (Firth's logistic regression, Wald's
-- interval): over 0 outliers come first, under 0 prototypes. Null with fewer than five extracted or five not.
WITH rules AS (
    SELECT unnest(['l2', 'adaptive_l2', 'ratio']) AS rule
),

found AS (
    SELECT
        model_id,
        sample_id,
        bool_or(by_l2) AS by_l2,
        bool_or(by_adaptive_l2) AS by_adaptive_l2,
        bool_or(by_ratio) AS by_ratio
    FROM untargeted_generations
    WHERE status <> 'failed' AND sample_id IS NOT NULL
    GROUP BY ALL
),

asked AS (
    SELECT
        attacked.model_id,
        attacked.run_id,
        attacked.cohort,
        attacked.step,
        attacked.last,
        rules.rule,
        densities.sample_id,
        densities.mean_l2,
        coalesce(
            CASE rules.rule WHEN 'l2' THEN found.by_l2 WHEN 'ratio' THEN found.by_ratio ELSE found.by_adaptive_l2 END,
            false
        ) AS extracted
    FROM attacked
    JOIN densities ON densities.run_id = attacked.run_id
    JOIN model_members AS members
        ON members.run_id = attacked.run_id AND members.sample_id = densities.sample_id AND members.copies = 1
    CROSS JOIN rules
    LEFT JOIN found ON found.model_id = attacked.model_id AND found.sample_id = densities.sample_id
),

fits AS (
    SELECT
        model_id,
        run_id,
        cohort,
        step,
        last,
        rule,
        count(*) AS pictures,
        count(*) FILTER (extracted) AS extracted,
        avg(mean_l2) FILTER (extracted) AS extracted_l2,
        avg(mean_l2) FILTER (NOT extracted) AS other_l2,
        odds_per_deviation(
            list(ln(greatest(mean_l2, 1e-6)) ORDER BY sample_id), list(extracted ORDER BY sample_id)
        ) AS estimate
    FROM asked
    GROUP BY ALL
),

final AS (
    SELECT
        model_id,
        run_id,
        cohort,
        step,
        last,
        rule,
        pictures,
        extracted,
        extracted_l2,
        other_l2,
        estimate[1] AS log_odds,
        estimate[2] AS log_odds_lower,
        estimate[3] AS log_odds_upper
    FROM fits
)

SELECT * FROM final
ORDER BY run_id, step, rule
