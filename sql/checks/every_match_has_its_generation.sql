-- A match of a generation that does not exist, or whose image was neither kept nor made again (one that was removed
-- since has a reason).
SELECT matches.prompt_id, matches.sample_index
FROM matches
LEFT JOIN generations USING (prompt_id, sample_index)
LEFT JOIN regenerations USING (prompt_id, sample_index)
WHERE generations.status IS DISTINCT FROM 'success'
   OR (NOT matches.regenerated AND generations.kept IS DISTINCT FROM true AND generations.reason IS NULL)
   OR (matches.regenerated AND regenerations.kept IS DISTINCT FROM true AND regenerations.reason IS NULL)
