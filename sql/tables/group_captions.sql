-- Grain: one duplicate group, with the caption by which it can be asked for; text is null where no image has one.
-- Source: duplicate_groups, samples (those that were not forgotten).
-- The representative's own caption, or else the one that most of the group's images have; of equally frequent ones that
-- of the smallest sample_id. sample_id is whose caption it is.
WITH groups AS (
    SELECT
        duplicate_groups.group_id,
        duplicate_groups.size AS n_duplicates,
        duplicate_groups.representative,
        nullif(stripped(samples.caption), '') AS text
    FROM duplicate_groups
    LEFT JOIN samples ON samples.sample_id = duplicate_groups.representative
    WHERE duplicate_groups.sample_id = duplicate_groups.representative
),

-- Of the others only where they are needed: a representative mostly has its own.
others AS (
    SELECT
        duplicate_groups.group_id,
        stripped(samples.caption) AS text,
        min(samples.sample_id) AS sample_id,
        count(*) AS images
    FROM duplicate_groups
    SEMI JOIN (SELECT group_id FROM groups WHERE text IS NULL) AS wanted
        ON wanted.group_id = duplicate_groups.group_id
    JOIN samples ON samples.sample_id = duplicate_groups.sample_id
    WHERE coalesce(stripped(samples.caption), '') <> ''
    GROUP BY duplicate_groups.group_id, stripped(samples.caption)
),

most_frequent AS (
    SELECT group_id, text, sample_id
    FROM others
    QUALIFY row_number() OVER (PARTITION BY group_id ORDER BY images DESC, sample_id) = 1
),

final AS (
    SELECT
        groups.group_id,
        groups.n_duplicates,
        coalesce(groups.text, most_frequent.text) AS text,
        CASE WHEN groups.text IS NULL THEN most_frequent.sample_id ELSE groups.representative END AS sample_id
    FROM groups
    LEFT JOIN most_frequent ON most_frequent.group_id = groups.group_id
)

SELECT * FROM final
