-- Grain: one verdict, tried on the controls: pictures that the model never saw.
-- Source: calibration. Every picture counted here is a false one. The paper's rule goes by l2, which every control that
-- was compared has; one without others to adapt to has no adaptive l2, so the denominators can differ.
WITH chosen AS (
    SELECT * FROM calibration WHERE chosen
),

plain AS (
    SELECT * FROM calibration WHERE distance = 'l2'
),

final AS (
    SELECT
        'extracted, own image' AS verdict, n_controls, controls_within_delta AS controls_called,
        controls_within_delta / nullif(n_controls, 0) AS rate,
        clopper_pearson_upper(controls_within_delta, n_controls) AS upper_bound
    FROM plain
    UNION ALL
    SELECT
        'extracted, another control', n_controls, controls_near_another_within_delta,
        controls_near_another_within_delta / nullif(n_controls, 0),
        clopper_pearson_upper(controls_near_another_within_delta, n_controls)
    FROM plain
    UNION ALL
    SELECT
        'extracted_calibrated', n_controls, controls_called,
        controls_called / nullif(n_controls, 0), upper_bound
    FROM chosen
)

SELECT * FROM final
