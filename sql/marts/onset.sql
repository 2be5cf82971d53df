-- Grain: one training of which several models were kept, one rule, what is counted (training pictures that were
-- extracted, or generations that the rule calls), and a share.
-- Source: attacked, leaks (staging). step: the first at which the share is reached; it lies after step_before. Steps
-- are those at which models were kept, each about twice the one before.
WITH points AS (
    SELECT
        attacked.run_id,
        attacked.family,
        attacked.pixels,
        attacked.width,
        attacked.images,
        attacked.seed,
        attacked.step,
        attacked.passes,
        leaks.rule,
        counts.counted,
        CASE counts.counted WHEN 'pictures' THEN leaks.extracted_share ELSE leaks.called_share END AS share
    FROM attacked
    JOIN leaks ON leaks.model_id = attacked.model_id AND leaks.against = 'members'
    CROSS JOIN (SELECT unnest(['pictures', 'generations']) AS counted) AS counts
),

reached AS (
    SELECT
        run_id,
        family,
        pixels,
        width,
        images,
        seed,
        rule,
        counted,
        shares.reaches,
        count(*) AS steps,
        max(step) AS last_step,
        max(share) AS largest_share,
        min(step) FILTER (share >= shares.reaches) AS step,
        min(passes) FILTER (share >= shares.reaches) AS passes
    FROM points
    CROSS JOIN (SELECT unnest([CAST(0.1 AS DOUBLE), CAST(0.5 AS DOUBLE)]) AS reaches) AS shares
    GROUP BY ALL
    HAVING count(*) > 1
),

final AS (
    SELECT
        reached.*,
        (
            SELECT max(points.step) FROM points
            WHERE points.run_id = reached.run_id AND points.rule = reached.rule
                AND points.counted = reached.counted AND points.step < reached.step
        ) AS step_before
    FROM reached
)

SELECT * FROM final
ORDER BY run_id, rule, counted DESC, reaches
