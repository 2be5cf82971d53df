-- A copied image of which a duplicate would stay in the training set, or is named twice.
SELECT duplicate_groups.sample_id, count(takedown.sample_id)
FROM extractions
JOIN duplicate_groups ON duplicate_groups.group_id = extractions.group_id
LEFT JOIN takedown ON takedown.sample_id = duplicate_groups.sample_id AND takedown.kind = 'image'
WHERE extractions.copied
GROUP BY duplicate_groups.sample_id
HAVING count(takedown.sample_id) <> 1
