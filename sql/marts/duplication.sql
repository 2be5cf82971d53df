-- Grain: one range of group sizes, by powers of two.
-- Source: duplicate_groups.
WITH groups AS (
    SELECT
        group_id,
        any_value(size) AS size,
        any_value(lowest_cosine) AS lowest_cosine,
        any_value(diameter) AS diameter,
        CAST(ceil(log2(any_value(size))) AS INTEGER) AS size_order
    FROM duplicate_groups
    GROUP BY group_id
),

final AS (
    SELECT
        CASE
            WHEN size_order <= 1 THEN CAST(1 << size_order AS VARCHAR)
            ELSE concat((1 << (size_order - 1)) + 1, '-', 1 << size_order)
        END AS duplicates,
        size_order,
        count(*) AS groups,
        CAST(sum(size) AS BIGINT) AS images,
        sum(size) / sum(sum(size)) OVER () AS share_of_images,
        min(lowest_cosine) AS lowest_cosine,
        max(diameter) AS diameter
    FROM groups
    GROUP BY size_order
)

SELECT * FROM final
ORDER BY size_order
