-- Grain: one control whose nearest generation was compared with its own image.
-- Source: matches, calibration.
WITH chosen AS (
    SELECT distance FROM calibration WHERE chosen
),

final AS (
    SELECT
        matches.prompt_id,
        matches.l2,
        CASE chosen.distance
            WHEN 'l2' THEN matches.l2
            WHEN 'tiled_l2' THEN matches.tiled_l2
            WHEN 'adaptive_l2' THEN matches.adaptive_l2
            ELSE error(concat('no such distance: ', chosen.distance))
        END AS distance
    FROM matches
    CROSS JOIN chosen
    WHERE matches.role = 'control' AND matches.relation = 'own' AND matches.nearest
)

SELECT * FROM final
