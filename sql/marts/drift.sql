-- Grain: one host of training pictures whose metadata say which picture they had: by digest, or LAION's similarity.
-- Source: samples (their column drift), embeddings, drift_rule. Those of which it is unknown are counted, and in no
-- rate; hosts with no others are left out. The interval is Wilson's.
WITH cosines AS (
    SELECT sample_id, caption_cosine
    FROM embeddings
    WHERE role = 'training' AND caption_cosine IS NOT NULL
),

pictures AS (
    SELECT
        domain_of(samples.url) AS domain,
        samples.drift AS by_digest,
        drift_of(samples.drift, cosines.caption_cosine - samples.similarity, drift_rule.lowest_gap) AS drift
    FROM samples
    LEFT JOIN cosines ON cosines.sample_id = samples.sample_id
    CROSS JOIN drift_rule
    WHERE samples.role = 'training' AND samples.status <> 'forgotten'
),

counts AS (
    SELECT
        domain,
        count(*) FILTER (WHERE drift = 'unchanged') AS unchanged,
        count(*) FILTER (WHERE drift = 'changed') AS changed,
        count(*) FILTER (WHERE drift = 'unknown') AS unknown,
        count(*) FILTER (WHERE drift <> by_digest) AS by_similarity
    FROM pictures
    GROUP BY domain
),

final AS (
    SELECT
        domain,
        unchanged,
        changed,
        unknown,
        by_similarity,
        changed / (changed + unchanged) AS share_changed,
        wilson_interval(changed, changed + unchanged)[1] AS share_lower,
        wilson_interval(changed, changed + unchanged)[2] AS share_upper
    FROM counts
    WHERE changed + unchanged > 0
)

SELECT * FROM final
ORDER BY changed DESC, unchanged DESC, domain
