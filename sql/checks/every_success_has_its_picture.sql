-- A sample that became a picture, of which there is none; or a picture of a sample that says that it became none.
SELECT sample_id, 'no picture' AS what
FROM samples
ANTI JOIN images USING (sample_id)
WHERE status = 'success'
UNION ALL
SELECT sample_id, status
FROM images
JOIN samples USING (sample_id)
WHERE status NOT IN ('success', 'forgotten')
