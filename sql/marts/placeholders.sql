-- Grain: one duplicate group that is a placeholder: one picture on many hosts, under captions that have no more words
-- in common than chance gives them.
-- Source: duplicate_groups, samples.
-- A picture that was memorised is repeated as well, but under captions like one another: by them the model knows it.
-- The words of a caption are looked for in the group's other captions; its support is the mean share of those that have
-- one, rare words weighing more (by the logarithm of how rare they are in the lake): "the" is in any.
-- likeness is the support that nine tenths of the captions don't exceed, and not the mean of all: so a share of the
-- captions that is like one another is enough for a group to be none.
WITH captions AS (
    SELECT
        duplicate_groups.group_id,
        duplicate_groups.representative,
        duplicate_groups.size,
        samples.sample_id,
        domain_of(samples.url) AS domain,
        words_of(stripped(samples.caption)) AS words
    FROM duplicate_groups
    JOIN samples ON samples.sample_id = duplicate_groups.sample_id
    WHERE is_placeholder(duplicate_groups.size, duplicate_groups.size, 0) AND len(words) > 0
),

-- Those that are spread enough; most aren't, and their words need not be counted.
spread AS (
    SELECT
        group_id,
        max(representative) AS sample_id,
        max(size) AS images,
        count(*) AS captions,
        count(DISTINCT domain) AS domains
    FROM captions
    GROUP BY group_id
    HAVING is_placeholder(count(*), count(DISTINCT domain), 0)
),

words AS (
    SELECT captions.group_id, captions.sample_id, unnest(captions.words) AS word
    FROM captions
    SEMI JOIN spread ON spread.group_id = captions.group_id
),

frequencies AS (
    SELECT group_id, word, count(*) AS captions_with
    FROM words
    GROUP BY group_id, word
),

-- Of one picture of each group, and 100,000 groups at most: sample_ids are hashes, so their order is by chance.
sampled AS (
    SELECT words_of(stripped(caption)) AS words
    FROM (
        SELECT samples.caption
        FROM duplicate_groups
        JOIN samples ON samples.sample_id = duplicate_groups.sample_id
        WHERE duplicate_groups.sample_id = duplicate_groups.representative
        ORDER BY samples.sample_id
        LIMIT 100000
    )
),

totals AS (SELECT ln(count(*) + 1) AS rarest FROM sampled),

rarities AS (
    SELECT word, any_value(totals.rarest) - ln(count(*)) AS rarity
    FROM (SELECT unnest(words) AS word FROM sampled)
    CROSS JOIN totals
    GROUP BY word
),

weights AS (
    SELECT
        words.group_id,
        words.sample_id,
        coalesce(rarities.rarity, totals.rarest) AS weight,
        (frequencies.captions_with - 1) / (spread.captions - 1) AS share
    FROM words
    JOIN frequencies ON frequencies.group_id = words.group_id AND frequencies.word = words.word
    JOIN spread ON spread.group_id = words.group_id
    LEFT JOIN rarities ON rarities.word = words.word
    CROSS JOIN totals
),

supports AS (
    SELECT group_id, sample_id, sum(weight * share) / sum(weight) AS support
    FROM weights
    GROUP BY group_id, sample_id
),

likenesses AS (
    SELECT group_id, quantile_cont(support, 0.9) AS likeness
    FROM supports
    GROUP BY group_id
),

-- How many are the same file, to the last byte.
files AS (
    SELECT group_id, max(images) AS identical
    FROM (
        SELECT duplicate_groups.group_id, samples.sha256, count(*) AS images
        FROM duplicate_groups
        SEMI JOIN spread ON spread.group_id = duplicate_groups.group_id
        JOIN samples ON samples.sample_id = duplicate_groups.sample_id
        WHERE samples.sha256 IS NOT NULL
        GROUP BY duplicate_groups.group_id, samples.sha256
    )
    GROUP BY group_id
),

final AS (
    SELECT
        spread.group_id,
        spread.sample_id,
        samples.url,
        stripped(samples.caption) AS caption,
        spread.images,
        files.identical,
        spread.captions,
        spread.domains,
        likenesses.likeness
    FROM likenesses
    JOIN spread ON spread.group_id = likenesses.group_id
    LEFT JOIN files ON files.group_id = likenesses.group_id
    LEFT JOIN samples ON samples.sample_id = spread.sample_id
    WHERE is_placeholder(spread.captions, spread.domains, likenesses.likeness)
)

SELECT * FROM final
ORDER BY images DESC, group_id
