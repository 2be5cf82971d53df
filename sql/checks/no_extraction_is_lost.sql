-- A training image that was extracted and has no row in extractions, or two: a table that it is joined with lacks it.
SELECT matches.group_id
FROM (SELECT DISTINCT group_id FROM matches WHERE extracted AND role = 'training') AS matches
LEFT JOIN extractions USING (group_id)
GROUP BY matches.group_id
HAVING count(extractions.group_id) <> 1
