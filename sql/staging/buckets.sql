-- Grain: one prompt that was tried, in one dimension.
-- Source: verdicts. What the user brought is no sample of anything, so it is left out of the other dimensions where
-- there are drawn prompts. Prompts that lost pictures or matches to "eidetic forget" are a bucket of their own, and no
-- part of any rate. Beyond the 100 domains of the most prompts they are one bucket, "(others)": no host has brackets.
WITH drawn AS (
    SELECT * FROM verdicts
    WHERE stratum <> 'forgotten'
      AND (origin <> 'list' OR NOT EXISTS (SELECT * FROM verdicts WHERE origin <> 'list'))
),

lengths AS (
    SELECT prompt_id, CAST(ceil(log2(greatest(prompt_words, 1))) AS INTEGER) AS bucket_order FROM drawn
),

domains AS (
    SELECT domain, row_number() OVER (ORDER BY count(*) DESC, domain) AS place
    FROM drawn
    WHERE domain IS NOT NULL
    GROUP BY domain
),

final AS (
    SELECT
        prompt_id,
        'all' AS dimension,
        CASE WHEN stratum = 'forgotten' THEN 'forgotten' WHEN origin = 'list' THEN 'list' ELSE 'drawn' END AS bucket,
        CASE WHEN stratum = 'forgotten' THEN 2 WHEN origin = 'list' THEN 1 ELSE 0 END AS bucket_order
    FROM verdicts
    UNION ALL
    SELECT prompt_id, 'duplicates', stratum, stratum_order FROM verdicts
    UNION ALL
    SELECT
        prompt_id,
        'prompt_length',
        CASE
            WHEN bucket_order <= 1 THEN CAST(1 << bucket_order AS VARCHAR)
            WHEN bucket_order > 6 THEN '65 and more'
            ELSE concat((1 << (bucket_order - 1)) + 1, '-', 1 << bucket_order)
        END,
        least(bucket_order, 7)
    FROM lengths
    UNION ALL
    SELECT
        prompt_id,
        'aspect',
        coalesce(aspect, 'unknown'),
        CASE aspect WHEN 'upright' THEN 0 WHEN 'square' THEN 1 WHEN 'wide' THEN 2 ELSE 3 END
    FROM drawn
    UNION ALL
    SELECT
        drawn.prompt_id,
        'domain',
        CASE WHEN drawn.domain IS NULL THEN '(unknown)' WHEN domains.place <= 100 THEN drawn.domain ELSE '(others)' END,
        CAST(CASE WHEN drawn.domain IS NULL THEN 102 ELSE least(domains.place, 101) END AS INTEGER)
    FROM drawn
    LEFT JOIN domains ON domains.domain = drawn.domain
)

SELECT * FROM final
