-- Grain: two models at one step, of one cohort, split and seed, that were trained on disjoint halves of a pool (side
-- in, out).
-- Source: half_distances (made of the thumbnails, by transforms/results/sweeps.py); models; leaks (staging). Both were
-- asked with the same seeds. Models that generalise give the same picture to the same seed (Kadkhodaie et al., ICLR
-- 2024): same_l2 is far under other_l2; models that memorise don't.
WITH final AS (
    SELECT
        halves.inside_model_id,
        halves.outside_model_id,
        models.cohort,
        models.pixels,
        models.width,
        models.images,
        models.split,
        models.seed,
        models.step,
        models.last,
        halves.generations,
        halves.same_l2,
        halves.same_l2_lower,
        halves.same_l2_upper,
        halves.other_l2,
        halves.same_l2 / nullif(halves.other_l2, 0) AS ratio,
        inside_l2.extracted_share AS inside_extracted_by_l2_share,
        outside_l2.extracted_share AS outside_extracted_by_l2_share,
        inside_adaptive_l2.extracted_share AS inside_extracted_by_adaptive_l2_share,
        outside_adaptive_l2.extracted_share AS outside_extracted_by_adaptive_l2_share,
        inside_ratio.extracted_share AS inside_extracted_by_ratio_share,
        outside_ratio.extracted_share AS outside_extracted_by_ratio_share
    FROM half_distances AS halves
    JOIN models ON models.model_id = halves.inside_model_id
    LEFT JOIN leaks AS inside_l2
        ON inside_l2.model_id = halves.inside_model_id
        AND inside_l2.against = 'members'
        AND inside_l2.rule = 'l2'
    LEFT JOIN leaks AS outside_l2
        ON outside_l2.model_id = halves.outside_model_id
        AND outside_l2.against = 'members'
        AND outside_l2.rule = 'l2'
    LEFT JOIN leaks AS inside_adaptive_l2
        ON inside_adaptive_l2.model_id = halves.inside_model_id
        AND inside_adaptive_l2.against = 'members'
        AND inside_adaptive_l2.rule = 'adaptive_l2'
    LEFT JOIN leaks AS outside_adaptive_l2
        ON outside_adaptive_l2.model_id = halves.outside_model_id
        AND outside_adaptive_l2.against = 'members'
        AND outside_adaptive_l2.rule = 'adaptive_l2'
    LEFT JOIN leaks AS inside_ratio
        ON inside_ratio.model_id = halves.inside_model_id
        AND inside_ratio.against = 'members'
        AND inside_ratio.rule = 'ratio'
    LEFT JOIN leaks AS outside_ratio
        ON outside_ratio.model_id = halves.outside_model_id
        AND outside_ratio.against = 'members'
        AND outside_ratio.rule = 'ratio'
)

SELECT * FROM final
ORDER BY cohort, split, seed, step
