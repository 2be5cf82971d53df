-- A prompt with another number of attempts than were asked for.
SELECT prompts.prompt_id, any_value(prompts.images_requested) AS requested, count(generations.sample_index) AS attempts
FROM prompts LEFT JOIN generations USING (prompt_id)
GROUP BY prompts.prompt_id
HAVING count(generations.sample_index) <> any_value(prompts.images_requested)
