-- Grain: one pair of rules, over the generations of one cohort's models at one step (and of all models: cohort and
-- step are null), asked of the pictures that they were trained on or of as many that they never saw.
-- Source: untargeted_generations, models. kappa is Cohen's: 1 where both always say the same, 0 where no more often
-- than by chance; null where both say one thing of all.
WITH asked AS (
    SELECT models.cohort, models.step, 'members' AS against, by_l2 AS by_l2, by_adaptive_l2 AS by_adaptive_l2,
        by_ratio AS by_ratio
    FROM untargeted_generations
    JOIN models ON models.model_id = untargeted_generations.model_id
    WHERE untargeted_generations.status <> 'failed' AND sample_id IS NOT NULL
    UNION ALL
    SELECT models.cohort, models.step, 'controls' AS against, control_by_l2 AS by_l2,
        control_by_adaptive_l2 AS by_adaptive_l2, control_by_ratio AS by_ratio
    FROM untargeted_generations
    JOIN models ON models.model_id = untargeted_generations.model_id
    WHERE untargeted_generations.status <> 'failed' AND control_sample_id IS NOT NULL
),

counted AS (
    SELECT
        asked.cohort,
        asked.step,
        asked.against,
        pairs.pair[1] AS rule,
        pairs.pair[2] AS other,
        count(*) AS generations,
        count(*) FILTER (calls[pairs.pair[1]] AND calls[pairs.pair[2]]) AS both,
        count(*) FILTER (calls[pairs.pair[1]] AND NOT calls[pairs.pair[2]]) AS only_rule,
        count(*) FILTER (NOT calls[pairs.pair[1]] AND calls[pairs.pair[2]]) AS only_other,
        count(*) FILTER (NOT calls[pairs.pair[1]] AND NOT calls[pairs.pair[2]]) AS neither
    FROM (
        SELECT *, MAP {'l2': by_l2, 'adaptive_l2': by_adaptive_l2, 'ratio': by_ratio} AS calls FROM asked
    ) AS asked
    CROSS JOIN (SELECT unnest([['l2', 'adaptive_l2'], ['l2', 'ratio'], ['adaptive_l2', 'ratio']]) AS pair) AS pairs
    GROUP BY GROUPING SETS ((asked.cohort, asked.step, asked.against, pairs.pair), (asked.against, pairs.pair))
),

chances AS (
    SELECT
        *,
        (counted.both + neither) / generations AS same,
        ((counted.both + only_rule) * (counted.both + only_other) + (neither + only_rule) * (neither + only_other))
            / (generations * generations) AS by_chance
    FROM counted
),

final AS (
    SELECT
        cohort,
        step,
        against,
        rule,
        other,
        generations,
        chances.both,
        only_rule,
        only_other,
        neither,
        CASE WHEN by_chance < 1 THEN (same - by_chance) / (1 - by_chance) END AS kappa
    FROM chances
)

SELECT * FROM final
ORDER BY cohort NULLS FIRST, step NULLS FIRST, against DESC, rule, other
