-- Grain: one model, and those of its pictures (or canaries) that stood in its training set equally often, of models in
-- which that differs.
-- Source: attacked (staging), model_members, untargeted_generations. Identical pictures are counted each here, since
-- each has its own copies; one of them alone can be extracted. Intervals: Blaker's.
WITH found AS (
    SELECT
        model_id,
        sample_id,
        bool_or(by_l2) AS by_l2,
        bool_or(by_adaptive_l2) AS by_adaptive_l2,
        bool_or(by_ratio) AS by_ratio
    FROM untargeted_generations
    WHERE status <> 'failed' AND sample_id IS NOT NULL
    GROUP BY ALL
),

counted AS (
    SELECT
        attacked.model_id,
        attacked.run_id,
        attacked.cohort,
        attacked.step,
        attacked.last,
        members.kind,
        members.copies,
        count(*) AS pictures,
        count(*) FILTER (found.by_l2) AS extracted_by_l2,
        count(*) FILTER (found.by_adaptive_l2) AS extracted_by_adaptive_l2,
        count(*) FILTER (found.by_ratio) AS extracted_by_ratio
    FROM attacked
    JOIN model_members AS members ON members.run_id = attacked.run_id
    LEFT JOIN found ON found.model_id = attacked.model_id AND found.sample_id = members.sample_id
    WHERE attacked.canaries > 0 OR (attacked.copied_images > 0 AND attacked.copies > 1 AND NOT attacked.deduplicated)
    GROUP BY ALL
),

final AS (
    SELECT
        model_id,
        run_id,
        cohort,
        step,
        last,
        kind,
        copies,
        pictures,
        extracted_by_l2,
        extracted_by_l2 / pictures AS extracted_by_l2_share,
        blaker_interval(extracted_by_l2, pictures)[1] AS extracted_by_l2_share_lower,
        blaker_interval(extracted_by_l2, pictures)[2] AS extracted_by_l2_share_upper,
        extracted_by_adaptive_l2,
        extracted_by_adaptive_l2 / pictures AS extracted_by_adaptive_l2_share,
        blaker_interval(extracted_by_adaptive_l2, pictures)[1] AS extracted_by_adaptive_l2_share_lower,
        blaker_interval(extracted_by_adaptive_l2, pictures)[2] AS extracted_by_adaptive_l2_share_upper,
        extracted_by_ratio,
        extracted_by_ratio / pictures AS extracted_by_ratio_share,
        blaker_interval(extracted_by_ratio, pictures)[1] AS extracted_by_ratio_share_lower,
        blaker_interval(extracted_by_ratio, pictures)[2] AS extracted_by_ratio_share_upper
    FROM counted
)

SELECT * FROM final
ORDER BY run_id, step, kind DESC, copies
