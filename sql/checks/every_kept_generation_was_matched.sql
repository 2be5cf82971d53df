-- A kept image that was compared with nothing, though it could be decoded and there was something to compare it with.
SELECT generations.prompt_id, generations.sample_index
FROM generations
ANTI JOIN matches USING (prompt_id, sample_index)
ANTI JOIN unreadable USING (prompt_id, sample_index)
WHERE generations.kept AND EXISTS (SELECT 1 FROM matches)
