-- Grain: one measure of one level of one axis against the axis' reference level, all else equal: in one setting of the
-- other axes, and over all of them (setting is all).
-- Source: leakage; settings (staging). Pairs of models that differ in the axis alone. The interval is Student's t of
-- the differences over replicates (seed, draw, split, side), each the mean over its settings: null with fewer than
-- two.
WITH measures AS (
    SELECT model_id, measure, value
    FROM leakage
    UNPIVOT (value FOR measure IN (
        extracted_by_l2_share, called_by_l2_share, controls_by_l2_share, extracted_by_adaptive_l2_share,
        called_by_adaptive_l2_share, controls_by_adaptive_l2_share, extracted_by_ratio_share,
        called_by_ratio_share, controls_by_ratio_share, frechet, cmmd, quality_precision, quality_recall,
        loss
    ))
),

pairs AS (
    SELECT
        one.axis,
        one.level,
        one.reference,
        one.setting,
        one.replicate,
        measures.measure,
        measures.value,
        others.value AS reference_value,
        measures.value - others.value AS difference
    FROM settings AS one
    JOIN settings AS other
        ON other.axis = one.axis
        AND other.setting = one.setting
        AND other.replicate = one.replicate
        AND other.level = one.reference
    JOIN measures ON measures.model_id = one.model_id
    JOIN measures AS others ON others.model_id = other.model_id AND others.measure = measures.measure
    WHERE len(list_filter(list_zip(one.level_parts, other.level_parts), lambda part: part[1] = part[2])) = 0
),

replicates AS (
    SELECT
        axis,
        level,
        reference,
        CASE WHEN grouping(setting) = 1 THEN 'all' ELSE setting END AS setting,
        measure,
        replicate,
        count(DISTINCT setting) AS settings,
        count(*) AS pairs,
        sum(value) AS total,
        sum(reference_value) AS reference_total,
        avg(difference) AS difference
    FROM pairs
    GROUP BY GROUPING SETS (
        (axis, level, reference, measure, replicate), (axis, level, reference, setting, measure, replicate)
    )
),

effects AS (
    SELECT
        axis,
        level,
        reference,
        setting,
        measure,
        max(settings) AS settings,
        CAST(sum(pairs) AS BIGINT) AS pairs,
        count(*) AS replicates,
        sum(total) / sum(pairs) AS level_mean,
        sum(reference_total) / sum(pairs) AS reference_mean,
        mean_interval(list(difference ORDER BY replicate)) AS estimate
    FROM replicates
    GROUP BY ALL
),

final AS (
    SELECT
        axis,
        level,
        reference,
        setting,
        settings,
        measure,
        pairs,
        replicates,
        level_mean,
        reference_mean,
        estimate[1] AS effect,
        estimate[2] AS effect_lower,
        estimate[3] AS effect_upper
    FROM effects
    -- One setting alone is all of them.
    QUALIFY setting = 'all' OR max(settings) OVER (PARTITION BY axis, level, measure) > 1
)

SELECT * FROM final
ORDER BY axis, setting <> 'all', setting, try_cast(level AS DOUBLE), level, measure
