-- What a rule calls names the picture that it is nearest to.
SELECT model_id, sample_index
FROM untargeted_generations
WHERE (sample_id IS NULL AND (by_l2 OR by_adaptive_l2 OR by_ratio))
    OR (control_sample_id IS NULL AND (control_by_l2 OR control_by_adaptive_l2 OR control_by_ratio))
