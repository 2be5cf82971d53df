-- Grain: one axis (images or width), one rule, what is counted, and a share: how the step at which it is reached
-- grows.
-- Source: onset; settings, attacked (staging). Slope of log step on log axis by least squares, each setting of the
-- other axes with a level of its own, with Student's t interval (Bonnaire et al. 2025: 1 for images, -1 for width).
-- The step is taken in the middle, in logarithms, of the two that it lies between; trainings that never reach the
-- share, or have at their first step, are counted and left out.
WITH trainings AS (
    SELECT
        settings.axis,
        settings.setting,
        CASE settings.axis WHEN 'images' THEN attacked.images ELSE attacked.width END AS size,
        onset.rule,
        onset.counted,
        onset.reaches,
        onset.step,
        onset.step_before,
        count(DISTINCT settings.level) OVER (
            PARTITION BY settings.axis, settings.setting, onset.rule, onset.counted, onset.reaches
        ) AS levels
    FROM settings
    JOIN attacked ON attacked.model_id = settings.model_id
    JOIN onset ON onset.run_id = attacked.run_id
    WHERE settings.axis IN ('images', 'width')
),

fits AS (
    SELECT
        axis,
        rule,
        counted,
        reaches,
        count(*) AS trainings,
        count(*) FILTER (step IS NULL) AS never,
        count(*) FILTER (step IS NOT NULL AND step_before IS NULL) AS at_once,
        coalesce(list(setting ORDER BY setting, size, step) FILTER (step_before IS NOT NULL), []) AS settings,
        coalesce(list(ln(size) ORDER BY setting, size, step) FILTER (step_before IS NOT NULL), []) AS sizes,
        coalesce(
            list((ln(step) + ln(step_before)) / 2 ORDER BY setting, size, step) FILTER (step_before IS NOT NULL), []
        ) AS steps
    FROM trainings
    WHERE levels > 1
    GROUP BY ALL
),

slopes AS (
    SELECT *, slope_within(settings, sizes, steps) AS estimate FROM fits
),

final AS (
    SELECT
        axis,
        rule,
        counted,
        reaches,
        trainings,
        never,
        at_once,
        len(list_distinct(settings)) AS settings,
        estimate[1] AS slope,
        estimate[2] AS slope_lower,
        estimate[3] AS slope_upper
    FROM slopes
)

SELECT * FROM final
ORDER BY axis, rule, counted DESC, reaches
