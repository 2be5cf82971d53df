-- Grain: one control of which generations were compared with its own image.
-- Source: matches, calibration.
WITH chosen AS (
    SELECT distance FROM calibration WHERE chosen
),

final AS (
    SELECT
        matches.prompt_id,
        min(matches.l2) AS l2,
        min(CASE chosen.distance
            WHEN 'l2' THEN matches.l2
            WHEN 'tiled_l2' THEN matches.tiled_l2
            ELSE matches.adaptive_l2
        END) AS distance
    FROM matches
    CROSS JOIN chosen
    WHERE matches.role = 'control' AND matches.relation = 'own'
    GROUP BY matches.prompt_id
)

SELECT * FROM final
