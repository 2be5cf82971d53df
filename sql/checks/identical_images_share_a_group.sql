-- An image whose exact-duplicate set has its canonical image in another group, or one that is not canonical itself.
SELECT images.sample_id
FROM duplicate_groups AS images
LEFT JOIN duplicate_groups AS leaders ON leaders.sample_id = images.identical_to
WHERE images.identical_to IS NOT NULL
  AND (leaders.group_id IS DISTINCT FROM images.group_id OR leaders.identical_to IS NOT NULL)
