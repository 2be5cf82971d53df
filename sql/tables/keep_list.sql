-- Grain: one training image to keep: one of each duplicate group, in the way of SemDeDup (Abbas et al. 2023).
-- Source: duplicate_groups, samples. Parameter: $keep, the rule by which the one is chosen.
-- A forgotten image is not kept; a group of those alone has none.
-- Ties, and images of which the rule knows nothing, go by the order of the metadata.
WITH ranked AS (
    SELECT
        duplicate_groups.sample_id,
        samples.url,
        duplicate_groups.group_id,
        duplicate_groups.size,
        row_number() OVER (
            PARTITION BY duplicate_groups.group_id
            ORDER BY
                CASE $keep
                    WHEN 'highest_resolution' THEN -CAST(samples.original_width AS DOUBLE) * samples.original_height
                    WHEN 'lowest_pwatermark' THEN samples.pwatermark
                    WHEN 'most_central'
                        THEN CAST(duplicate_groups.sample_id <> duplicate_groups.representative AS DOUBLE)
                    ELSE 0
                END NULLS LAST,
                samples.source_file,
                samples.source_row,
                duplicate_groups.sample_id
        ) AS place
    FROM duplicate_groups
    LEFT JOIN samples ON samples.sample_id = duplicate_groups.sample_id
    WHERE samples.status IS DISTINCT FROM 'forgotten'
),

final AS (
    SELECT sample_id, url, group_id, size FROM ranked WHERE place = 1
)

SELECT * FROM final
ORDER BY sample_id
