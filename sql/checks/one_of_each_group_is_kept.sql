-- A duplicate group of which the keep list has none or several.
SELECT groups.group_id, count(keep_list.sample_id)
FROM (SELECT DISTINCT group_id FROM duplicate_groups) AS groups
LEFT JOIN keep_list USING (group_id)
GROUP BY groups.group_id
HAVING count(keep_list.sample_id) <> 1
