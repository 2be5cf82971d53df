-- A prompt that is there twice would be counted twice.
SELECT prompt_id FROM prompts GROUP BY prompt_id HAVING count(*) > 1
