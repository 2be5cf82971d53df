-- Grain: one duplicate group, with the caption by which it can be asked for; text is null where no image has one.
-- Source: duplicate_groups, samples (those that were not forgotten).
-- The representative's own caption, or else the one that most of the group's images have; of equally frequent ones that
-- of the smallest sample_id. sample_id is whose caption it is.
WITH groups AS (
    -- Not by the representative's row: what was forgotten has none, and the others of its group are still there.
    SELECT group_id, max(size) AS n_duplicates, max(representative) AS representative
    FROM duplicate_groups
    GROUP BY group_id
),

own AS (
    SELECT groups.*, nullif(stripped(samples.caption), '') AS text
    FROM groups
    LEFT JOIN samples ON samples.sample_id = groups.representative
),

-- Of the others only where they are needed: a representative mostly has its own.
others AS (
    SELECT
        duplicate_groups.group_id,
        stripped(samples.caption) AS text,
        min(samples.sample_id) AS sample_id,
        count(*) AS images
    FROM duplicate_groups
    SEMI JOIN (SELECT group_id FROM own WHERE text IS NULL) AS wanted
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
        own.group_id,
        own.n_duplicates,
        coalesce(own.text, most_frequent.text) AS text,
        CASE WHEN own.text IS NULL THEN most_frequent.sample_id ELSE own.representative END AS sample_id
    FROM own
    LEFT JOIN most_frequent ON most_frequent.group_id = own.group_id
)

SELECT * FROM final
