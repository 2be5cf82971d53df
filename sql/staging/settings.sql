-- Grain: one model at the end of its training, looked at as one level of one axis that the sweep varies.
-- Source: attacked (staging). Axes that say one thing together are an axis as well, in pairs: what differs in both of
-- them is compared. setting: what else the sweep varies, and how it is here; replicate: which pictures and which
-- random numbers. Models of one setting and one replicate differ in the axis alone. The reference is the level with
-- the most models that have another level beside them, among equals the smallest.
WITH compared AS (
    SELECT model_id, family, pixels, width, layers, attention, dropout, images, pool, draw, split, side, copied_images,
        copies, canaries, deduplicated, labels, classes, flip, steps, epochs, checkpoints, batch_size,
        learning_rate, warmup, weight_decay, ema, "precision", timesteps, schedule, privacy_noise,
        privacy_clipping, seed
    FROM attacked
    WHERE last
),

texts AS (
    SELECT model_id, CAST(COLUMNS(* EXCLUDE (model_id)) AS VARCHAR)
    FROM compared
),

levels AS (
    SELECT model_id, axis, level
    FROM texts
    UNPIVOT (level FOR axis IN (
        family, pixels, width, layers, attention, dropout, images, pool, draw, split, side,
        copied_images, copies, canaries, deduplicated, labels, classes, flip, steps, epochs, checkpoints,
        batch_size, learning_rate, warmup, weight_decay, ema, "precision", timesteps, schedule,
        privacy_noise, privacy_clipping, seed
    ))
),

varied AS (
    -- How often a model is kept on the way is nothing that it differs in at the end.
    SELECT axis FROM levels WHERE axis <> 'checkpoints' GROUP BY axis HAVING count(DISTINCT level) > 1
),

axes AS (
    SELECT axis, [axis] AS parts FROM varied WHERE axis NOT IN ('seed', 'draw', 'split', 'side')
    UNION ALL
    SELECT pairs.parts[1] || ', ' || pairs.parts[2], pairs.parts
    FROM (
        SELECT unnest([
            ['copied_images', 'copies'],
            ['images', 'pool'],
            ['labels', 'classes'],
            ['privacy_noise', 'privacy_clipping']
        ]) AS parts
    ) AS pairs
    WHERE pairs.parts[1] IN (SELECT axis FROM varied) AND pairs.parts[2] IN (SELECT axis FROM varied)
),

described AS (
    SELECT
        levels.model_id,
        axes.axis,
        axes.parts,
        list(levels.level ORDER BY list_position(axes.parts, levels.axis))
            FILTER (list_contains(axes.parts, levels.axis)) AS level_parts,
        coalesce(string_agg(levels.axis || '=' || levels.level, ', ' ORDER BY levels.axis) FILTER (
            NOT list_contains(axes.parts, levels.axis) AND levels.axis NOT IN ('seed', 'draw', 'split', 'side')
        ), '') AS setting,
        coalesce(string_agg(levels.axis || '=' || levels.level, ', ' ORDER BY levels.axis) FILTER (
            levels.axis IN ('seed', 'draw', 'split', 'side')
        ), '') AS replicate
    FROM levels
    SEMI JOIN varied ON varied.axis = levels.axis
    CROSS JOIN axes
    GROUP BY ALL
),

named AS (
    SELECT
        *,
        array_to_string(level_parts, ', ') AS level,
        count(DISTINCT level_parts) OVER (PARTITION BY axis, setting, replicate) AS levels
    FROM described
),

counted AS (
    SELECT *, count(*) FILTER (levels > 1) OVER (PARTITION BY axis, level) AS models
    FROM named
),

final AS (
    SELECT
        model_id,
        axis,
        level,
        level_parts,
        setting,
        replicate,
        first_value(level) OVER (
            PARTITION BY axis ORDER BY models DESC, try_cast(level_parts[1] AS DOUBLE), level
        ) AS reference
    FROM counted
)

SELECT * FROM final
ORDER BY axis, setting, replicate, try_cast(level_parts[1] AS DOUBLE), level, model_id
