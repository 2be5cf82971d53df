-- Grain: one model by one attack, or all models of a cohort at one step by it, at one timestep or at the one that was
-- chosen, of so many draws and flips.
-- Source: membership_scores, models, membership_attacks. The rate at a false positive rate is the largest whose false
-- positive rate is not over it; under 100 non-members nothing is said at 1%, under 1,000 nothing at 0.1%. Scores that
-- are null are counted, and left out.
WITH scored AS (
    SELECT
        membership_scores.*,
        models.cohort,
        models.step,
        models.family,
        membership_attacks.shadows
    FROM membership_scores
    JOIN models ON models.model_id = membership_scores.model_id
    JOIN membership_attacks ON membership_attacks.model_id = membership_scores.model_id
),

asked AS (
    SELECT *, 'fixed' AS selection FROM scored
    UNION ALL
    SELECT *, 'chosen' AS selection FROM scored WHERE chosen
),

both_scopes AS (
    SELECT *, 'model' AS scope, model_id AS one_model_id, timestep AS group_timestep FROM asked
    UNION ALL
    -- Each model at the timestep that was chosen for it.
    SELECT
        *,
        'cohort' AS scope,
        NULL AS one_model_id,
        CASE WHEN selection = 'fixed' THEN timestep END AS group_timestep
    FROM asked
),

gathered AS (
    SELECT
        scope,
        cohort,
        step,
        one_model_id AS model_id,
        family,
        attack,
        selection,
        CASE WHEN min(timestep) = max(timestep) THEN min(timestep) END AS timestep,
        draws,
        flips,
        count(DISTINCT model_id) AS models,
        CASE WHEN attack LIKE 'lira%' OR attack = 'rmia' THEN min(shadows) END AS shadows,
        count(score) FILTER (member) AS members,
        count(score) FILTER (NOT member) AS non_members,
        count(DISTINCT sample_id) FILTER (score IS NOT NULL) AS images,
        count(*) FILTER (score IS NULL) AS without_score,
        list(score ORDER BY model_id, sample_id) FILTER (score IS NOT NULL) AS scores,
        list(member ORDER BY model_id, sample_id) FILTER (score IS NOT NULL) AS sides,
        list(sample_id ORDER BY model_id, sample_id) FILTER (score IS NOT NULL) AS whose
    FROM both_scopes
    GROUP BY scope, cohort, step, one_model_id, family, attack, selection, group_timestep, draws, flips
),

judged AS (
    SELECT *, membership_rates(coalesce(scores, []), coalesce(sides, []), coalesce(whose, [])) AS rates
    FROM gathered
),

final AS (
    SELECT
        scope,
        cohort,
        step,
        model_id,
        family,
        attack,
        selection,
        timestep,
        draws,
        flips,
        models,
        shadows,
        members,
        non_members,
        images,
        without_score,
        rates[1] AS area,
        rates[2] AS true_positives_at_1_percent,
        rates[3] AS true_positives_at_1_percent_lower,
        rates[4] AS true_positives_at_1_percent_upper,
        CASE
            WHEN members = 0 THEN 'no members'
            WHEN non_members < 100 THEN non_members || ' non-members, a false positive rate of 1% takes 100'
        END AS refused_at_1_percent,
        rates[5] AS true_positives_at_tenth_percent,
        rates[6] AS true_positives_at_tenth_percent_lower,
        rates[7] AS true_positives_at_tenth_percent_upper,
        CASE
            WHEN members = 0 THEN 'no members'
            WHEN non_members < 1000 THEN non_members || ' non-members, a false positive rate of 0.1% takes 1,000'
        END AS refused_at_tenth_percent
    FROM judged
)

SELECT * FROM final
ORDER BY scope, cohort, step, model_id NULLS FIRST, attack, selection, timestep NULLS FIRST, draws, flips
