-- The member that a generation is nearest to is a picture that its model was trained on; the control isn't.
SELECT made.model_id, made.sample_index, made.sample_id, made.control_sample_id
FROM untargeted_generations AS made
JOIN models ON models.model_id = made.model_id
LEFT JOIN model_members AS members ON members.run_id = models.run_id AND members.sample_id = made.sample_id
LEFT JOIN model_members AS controls ON controls.run_id = models.run_id AND controls.sample_id = made.control_sample_id
WHERE (made.sample_id IS NOT NULL AND members.sample_id IS NULL) OR controls.sample_id IS NOT NULL
