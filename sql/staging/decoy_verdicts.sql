-- Grain: one picture that is no copy, judged as if it were a generation, by each rule.
-- Source: decoys, copy_calibration, audits. Rules as in training_matches.
WITH final AS (
    SELECT
        decoys.kind,
        decoys.sample_id,
        decoys.coarse_l2,
        decoys.coarse_ratio,
        decoys.l2 <= CAST(audits.parameters ->> '$.match.delta' AS DOUBLE) AS extracted,
        coalesce(decoys.adaptive_l2 <= 1, false) AS by_adaptive_l2,
        coalesce(decoys.ratio < 1 / 3, false) AS by_ratio,
        coalesce(
            decoys.l2 <= copy_calibration.l2_limit
            AND decoys.coarse_l2 < copy_calibration.coarse_l2_limit
            AND decoys.coarse_ratio < copy_calibration.coarse_ratio_limit,
            false
        ) AS copied
    FROM decoys
    CROSS JOIN copy_calibration
    CROSS JOIN audits
)

SELECT * FROM final
