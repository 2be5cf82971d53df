-- A match of a training image with another group than the one that it is in.
SELECT matches.prompt_id, matches.sample_index, matches.sample_id
FROM matches LEFT JOIN duplicate_groups USING (sample_id)
WHERE matches.role = 'training' AND matches.group_id IS DISTINCT FROM duplicate_groups.group_id
