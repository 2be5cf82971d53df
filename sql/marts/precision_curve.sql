-- Grain: one training image (its duplicate group) whose caption's nearest generation lies within the limit of a copy.
-- Source: verdicts, calibration, copy_calibration; decoy_verdicts (staging). In order of confidence, the smallest
-- coarse_ratio first. False ones are what held-out pictures say, each as if it were a generation: if as large a share
-- of the tried images were called by chance as of those, expected_false would be false.
WITH limits AS (
    SELECT
        coarse_l2_limit,
        (SELECT max(images_tested) FROM calibration WHERE chosen) AS images_tested,
        (SELECT CAST(count(*) AS INTEGER) FROM decoy_verdicts WHERE kind = 'held_out') AS n_held_out
    FROM copy_calibration
),

nearest AS (
    SELECT
        verdicts.group_id,
        min_by(verdicts.prompt_id, verdicts.own_coarse_ratio) AS prompt_id,
        min(verdicts.own_coarse_ratio) AS coarse_ratio,
        bool_or(verdicts.copied) AS copied,
        true AS is_training
    FROM verdicts
    CROSS JOIN limits
    WHERE verdicts.own_coarse_ratio IS NOT NULL AND verdicts.own_coarse_l2 < limits.coarse_l2_limit
      AND verdicts.group_id IS NOT NULL
    GROUP BY verdicts.group_id
    UNION ALL
    SELECT NULL, decoy_verdicts.sample_id, decoy_verdicts.coarse_ratio, NULL, false
    FROM decoy_verdicts
    CROSS JOIN limits
    WHERE decoy_verdicts.kind = 'held_out' AND decoy_verdicts.coarse_ratio IS NOT NULL
      AND decoy_verdicts.coarse_l2 < limits.coarse_l2_limit
),

counted AS (
    SELECT
        *,
        -- Held-out pictures that are as near count as nearer. A sum: a count with a filter goes through the frame for
        -- each row.
        CAST(sum(CAST(NOT is_training AS BIGINT)) OVER ranked AS BIGINT) AS held_out_called,
        row_number() OVER ranked - held_out_called AS rank
    FROM nearest
    WINDOW ranked AS (ORDER BY coarse_ratio, is_training, group_id ROWS UNBOUNDED PRECEDING)
),

final AS (
    SELECT
        counted.rank,
        counted.group_id,
        counted.prompt_id,
        counted.coarse_ratio,
        counted.copied,
        counted.held_out_called,
        limits.n_held_out,
        CASE WHEN limits.n_held_out > 0 THEN limits.images_tested * counted.held_out_called / limits.n_held_out END
            AS expected_false,
        CASE WHEN limits.n_held_out > 0 THEN 1 - least(1, expected_false / counted.rank) END AS precision
    FROM counted
    CROSS JOIN limits
    WHERE counted.is_training
)

SELECT * FROM final
ORDER BY rank
