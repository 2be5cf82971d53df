-- Grain: one host of training pictures whose metadata say which bytes they had.
-- Source: samples (their column drift). Those of which it is unknown are counted, and in no rate; hosts with no others
-- are left out. The interval is Wilson's.
WITH counts AS (
    SELECT
        domain_of(url) AS domain,
        count(*) FILTER (WHERE drift = 'unchanged') AS unchanged,
        count(*) FILTER (WHERE drift = 'changed') AS changed,
        count(*) FILTER (WHERE drift = 'unknown') AS unknown
    FROM samples
    WHERE role = 'training' AND status <> 'forgotten'
    GROUP BY domain_of(url)
),

final AS (
    SELECT
        domain,
        unchanged,
        changed,
        unknown,
        changed / (changed + unchanged) AS share_changed,
        wilson_interval(changed, changed + unchanged)[1] AS share_lower,
        wilson_interval(changed, changed + unchanged)[2] AS share_upper
    FROM counts
    WHERE changed + unchanged > 0
)

SELECT * FROM final
ORDER BY changed DESC, unchanged DESC, domain
