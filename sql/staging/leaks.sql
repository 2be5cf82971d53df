-- Grain: one model, one rule, asked of the model's own pictures (members) or of as many that it never saw (controls).
-- Source: attacked (staging), untargeted_generations. called: generations that the rule calls; extracted: the
-- different pictures that those are nearest to, canaries apart. Intervals: Blaker's.
WITH asked AS (
    SELECT model_id, 'members' AS against, 'l2' AS rule, by_l2 AS called,
        sample_id AS sample_id FROM untargeted_generations WHERE status <> 'failed'
    UNION ALL
    SELECT model_id, 'members' AS against, 'adaptive_l2' AS rule, by_adaptive_l2 AS called,
        sample_id AS sample_id FROM untargeted_generations WHERE status <> 'failed'
    UNION ALL
    SELECT model_id, 'members' AS against, 'ratio' AS rule, by_ratio AS called,
        sample_id AS sample_id FROM untargeted_generations WHERE status <> 'failed'
    UNION ALL
    SELECT model_id, 'controls' AS against, 'l2' AS rule, control_by_l2 AS called,
        control_sample_id AS sample_id FROM untargeted_generations WHERE status <> 'failed'
    UNION ALL
    SELECT model_id, 'controls' AS against, 'adaptive_l2' AS rule, control_by_adaptive_l2 AS called,
        control_sample_id AS sample_id FROM untargeted_generations WHERE status <> 'failed'
    UNION ALL
    SELECT model_id, 'controls' AS against, 'ratio' AS rule, control_by_ratio AS called,
        control_sample_id AS sample_id FROM untargeted_generations WHERE status <> 'failed'
),

counted AS (
    SELECT
        model_id,
        against,
        rule,
        count(*) FILTER (called) AS called,
        count(DISTINCT sample_id) FILTER (called AND NOT starts_with(sample_id, 'canary-')) AS extracted,
        count(DISTINCT sample_id) FILTER (called AND starts_with(sample_id, 'canary-')) AS canaries_extracted
    FROM asked
    GROUP BY ALL
),

counts AS (
    SELECT
        attacked.model_id,
        sides.against,
        rules.rule,
        attacked.made,
        coalesce(counted.called, 0) AS called,
        CASE sides.against WHEN 'members' THEN attacked.pictures ELSE attacked.controls END AS pictures,
        coalesce(counted.extracted, 0) AS extracted,
        coalesce(counted.canaries_extracted, 0) AS canaries_extracted
    FROM attacked
    CROSS JOIN (SELECT unnest(['members', 'controls']) AS against) AS sides
    CROSS JOIN (SELECT unnest(['l2', 'adaptive_l2', 'ratio']) AS rule) AS rules
    LEFT JOIN counted
        ON counted.model_id = attacked.model_id
        AND counted.against = sides.against
        AND counted.rule = rules.rule
),

intervals AS (
    SELECT
        *,
        CASE WHEN made > 0 THEN blaker_interval(called, made) END AS called_interval,
        CASE WHEN pictures > 0 THEN blaker_interval(extracted, pictures) END AS extracted_interval
    FROM counts
),

final AS (
    SELECT
        model_id,
        against,
        rule,
        made,
        called,
        CASE WHEN made > 0 THEN called / made END AS called_share,
        called_interval[1] AS called_share_lower,
        called_interval[2] AS called_share_upper,
        pictures,
        extracted,
        CASE WHEN pictures > 0 THEN extracted / pictures END AS extracted_share,
        extracted_interval[1] AS extracted_share_lower,
        extracted_interval[2] AS extracted_share_upper,
        canaries_extracted
    FROM intervals
)

SELECT * FROM final
ORDER BY model_id, against, rule
