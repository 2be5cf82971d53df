-- A training image that a verdict calls and that has no row in extractions, or two: a table that it is joined with
-- lacks it.
SELECT called.group_id
FROM (
    SELECT group_id FROM matches WHERE extracted AND role = 'training'
    UNION
    SELECT group_id FROM training_matches WHERE copied
    UNION
    SELECT group_id FROM verdicts WHERE copied
) AS called
LEFT JOIN extractions USING (group_id)
GROUP BY called.group_id
HAVING count(extractions.group_id) <> 1
