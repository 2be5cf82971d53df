-- Grain: one role, domain, status and reason: what became of the rows of the metadata.
-- Source: samples. Beyond the 100 domains of the most rows they are one, "(others)": no host has brackets.
WITH placed AS (
    SELECT role, status, reason, domain_of(url) AS domain FROM samples
),

domains AS (
    SELECT domain, row_number() OVER (ORDER BY count(*) DESC, domain) AS place
    FROM placed
    WHERE domain IS NOT NULL
    GROUP BY domain
),

counted AS (
    SELECT
        placed.role,
        CASE
            WHEN placed.domain IS NULL THEN '(unknown)'
            WHEN domains.place <= 100 THEN placed.domain
            ELSE '(others)'
        END AS domain,
        placed.status,
        placed.reason,
        count(*) AS samples
    FROM placed
    LEFT JOIN domains ON domains.domain = placed.domain
    GROUP BY ALL
),

final AS (
    SELECT
        *,
        samples / sum(samples) OVER (PARTITION BY role) AS share_of_role,
        samples / sum(samples) OVER (PARTITION BY role, domain) AS share_of_domain
    FROM counted
)

SELECT * FROM final
ORDER BY role DESC, samples DESC, domain, status, reason
