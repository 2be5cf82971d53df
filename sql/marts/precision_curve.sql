-- Grain: one training image (its duplicate group) that was compared with generations of its own caption.
-- Source: verdicts, calibration; control_distances (staging). In order of confidence, the nearest first, by the
-- distance that the calibrated verdict goes by. False ones are what controls say: pictures that the model never saw.
-- If as large a share of the tried images were called by chance as of the controls, expected_false would be false.
-- Where a prompt has more generations than a control, that share is multiplied by as much (no more than 1).
-- Controls are counted as they are now: calibration still has those that were forgotten, whose distances are gone.
WITH chosen AS (
    SELECT
        distance,
        threshold,
        images_tested,
        ceil(generations_per_prompt / greatest(generations_per_control, 1)) AS times,
        (SELECT CAST(count(distance) AS INTEGER) FROM control_distances) AS n_controls
    FROM calibration
    WHERE chosen
),

nearest AS (
    SELECT group_id, min_by(prompt_id, own_distance) AS prompt_id, min(own_distance) AS distance, true AS is_training
    FROM verdicts
    WHERE own_distance IS NOT NULL
    GROUP BY group_id
    UNION ALL
    SELECT NULL, prompt_id, distance, false FROM control_distances WHERE distance IS NOT NULL
),

counted AS (
    SELECT
        *,
        -- Controls that are as near count as nearer. A sum: a count with a filter goes through the frame for each row.
        CAST(sum(CAST(NOT is_training AS BIGINT)) OVER ranked AS BIGINT) AS controls_called,
        row_number() OVER ranked - controls_called AS rank
    FROM nearest
    WINDOW ranked AS (ORDER BY distance, is_training, group_id ROWS UNBOUNDED PRECEDING)
),

final AS (
    SELECT
        counted.rank,
        counted.group_id,
        counted.prompt_id,
        chosen.distance AS distance_name,
        counted.distance,
        coalesce(counted.distance < chosen.threshold, false) AS called,
        counted.controls_called,
        chosen.n_controls,
        -- Not by least(), which passes over a null.
        CASE WHEN chosen.n_controls > 0 THEN
            chosen.images_tested * least(1, chosen.times * counted.controls_called / chosen.n_controls)
        END AS expected_false,
        CASE WHEN chosen.n_controls > 0 THEN 1 - least(1, expected_false / counted.rank) END AS precision
    FROM counted
    CROSS JOIN chosen
    WHERE counted.is_training
)

SELECT * FROM final
ORDER BY rank
