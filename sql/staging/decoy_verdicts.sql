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
        is_copy(decoys, copy_calibration) AS copied
    FROM decoys
    CROSS JOIN copy_calibration
    CROSS JOIN audits
)

SELECT * FROM final
