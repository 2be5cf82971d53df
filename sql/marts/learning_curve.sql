-- Grain: one model of a training of which several were kept, so that leak, loss and quality can be seen while it
-- learns.
-- Source: leakage.
WITH final AS (
    SELECT
        run_id,
        model_id,
        cohort,
        family,
        pixels,
        width,
        images,
        seed,
        step,
        last,
        passes,
        loss,
        frechet,
        cmmd,
        quality_precision,
        quality_recall,
        called_by_l2_share,
        extracted_by_l2_share,
        extracted_by_l2_share_lower,
        extracted_by_l2_share_upper,
        called_by_adaptive_l2_share,
        extracted_by_adaptive_l2_share,
        extracted_by_adaptive_l2_share_lower,
        extracted_by_adaptive_l2_share_upper,
        called_by_ratio_share,
        extracted_by_ratio_share,
        extracted_by_ratio_share_lower,
        extracted_by_ratio_share_upper
    FROM leakage
    WHERE pictures_made IS NOT NULL
    QUALIFY count(*) OVER (PARTITION BY run_id) > 1
)

SELECT * FROM final
ORDER BY run_id, step
