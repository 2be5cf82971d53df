-- A duplicate group of which the keep list has none or several; one that was forgotten as a whole has none.
SELECT groups.group_id, count(keep_list.sample_id)
FROM (
    SELECT DISTINCT group_id
    FROM duplicate_groups
    ANTI JOIN (SELECT sample_id FROM samples WHERE status = 'forgotten') AS forgotten USING (sample_id)
) AS groups
LEFT JOIN keep_list USING (group_id)
GROUP BY groups.group_id
HAVING count(keep_list.sample_id) <> 1
