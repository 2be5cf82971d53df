-- Grain: one verdict, tried on one kind of picture that it should not call.
-- Source: calibration; decoy_verdicts (staging). Controls are pictures that the model never saw: a verdict about their
-- own captions' generations is a false one. Decoys are no copies, judged as if they were generations: held-out
-- pictures themselves, training images against all other groups, and training images of which a blur is left. The
-- paper's rule goes by l2, which every control that was compared has; one without others to adapt to has no adaptive
-- l2, so the denominators can differ.
WITH chosen AS (
    SELECT * FROM calibration WHERE chosen
),

plain AS (
    SELECT * FROM calibration WHERE distance = 'l2'
),

by_decoys AS (
    SELECT
        kind,
        CAST(count(*) AS INTEGER) AS pictures,
        CAST(count(*) FILTER (copied) AS INTEGER) AS copied,
        CAST(count(*) FILTER (extracted) AS INTEGER) AS extracted,
        CAST(count(*) FILTER (by_adaptive_l2) AS INTEGER) AS by_adaptive_l2,
        CAST(count(*) FILTER (by_ratio) AS INTEGER) AS by_ratio
    FROM decoy_verdicts
    GROUP BY kind
),

counted AS (
    SELECT 'seen' AS verdict, 'controls' AS tried_on, n_controls AS pictures, controls_called AS called FROM chosen
    UNION ALL
    SELECT 'extracted, own image', 'controls', n_controls, controls_within_delta FROM plain
    UNION ALL
    SELECT 'extracted, another control', 'controls', n_controls, controls_near_another_within_delta FROM plain
    UNION ALL
    SELECT verdict, kind, pictures, called
    FROM by_decoys
    CROSS JOIN LATERAL (
        VALUES ('copied', copied), ('extracted', extracted), ('adaptive l2', by_adaptive_l2), ('ratio', by_ratio)
    ) AS rules (verdict, called)
),

final AS (
    SELECT
        verdict,
        tried_on,
        pictures,
        called,
        called / nullif(pictures, 0) AS rate,
        CASE WHEN called IS NOT NULL THEN clopper_pearson_upper(called, pictures) END AS upper_bound
    FROM counted
)

SELECT * FROM final
ORDER BY
    list_position(['controls', 'held_out', 'left_out', 'blurred'], tried_on),
    list_position(['copied', 'seen'], verdict) NULLS LAST,
    verdict
