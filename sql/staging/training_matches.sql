-- Grain: one judged generation against one group of training images.
-- Source: matches, calibration, copy_calibration. distance is the one that "seen" goes by. Four rules side by side:
-- the paper's (extracted: l2 <= delta), its adaptive one (adaptive_l2 <= 1, section 5.1), that of Yoon and Gu
-- (ratio < 1/3), and copied: nearer than new pictures come, absolutely and against every other image
-- (docs/calibration.md).
WITH chosen AS (
    SELECT distance, threshold FROM calibration WHERE chosen
),

final AS (
    SELECT
        matches.* EXCLUDE (audit_id, model_revision, parameters_digest),
        CASE chosen.distance
            WHEN 'l2' THEN matches.l2
            WHEN 'tiled_l2' THEN matches.tiled_l2
            WHEN 'adaptive_l2' THEN matches.adaptive_l2
            ELSE error(concat('no such distance: ', chosen.distance))
        END AS distance,
        chosen.threshold,
        coalesce(matches.adaptive_l2 <= 1, false) AS by_adaptive_l2,
        coalesce(matches.ratio < 1 / 3, false) AS by_ratio,
        is_copy(matches, copy_calibration) AS copied
    FROM matches
    CROSS JOIN chosen
    CROSS JOIN copy_calibration
    WHERE matches.role = 'training'
)

SELECT * FROM final
