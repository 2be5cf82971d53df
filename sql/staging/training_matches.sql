-- Grain: one kept generation against one group of training images.
-- Source: matches, calibration. distance is the one that the calibrated verdict goes by.
WITH chosen AS (
    SELECT distance, threshold FROM calibration WHERE chosen
),

final AS (
    SELECT
        matches.* EXCLUDE (audit_id, model_revision, parameters_digest),
        CASE chosen.distance
            WHEN 'l2' THEN matches.l2
            WHEN 'tiled_l2' THEN matches.tiled_l2
            ELSE matches.adaptive_l2
        END AS distance,
        chosen.threshold
    FROM matches
    CROSS JOIN chosen
    WHERE matches.role = 'training'
)

SELECT * FROM final
