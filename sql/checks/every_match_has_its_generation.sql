-- A match of a generation that does not exist, or whose image was not kept (one that was removed since has a reason).
SELECT matches.prompt_id, matches.sample_index
FROM matches LEFT JOIN generations USING (prompt_id, sample_index)
WHERE generations.status IS DISTINCT FROM 'success'
   OR (generations.kept IS DISTINCT FROM true AND generations.reason IS NULL)
