-- A generation that was compared with one group twice.
SELECT prompt_id, sample_index, group_id FROM matches GROUP BY prompt_id, sample_index, group_id HAVING count(*) > 1
