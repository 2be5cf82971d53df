-- Grain: one row of the metadata.
-- Source: samples. domain: the host of the url, without "www."; null where the url has none.
WITH final AS (
    SELECT
        sample_id,
        nullif(regexp_extract(lower(url), '^[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?(?:www\.)?([^/?#:]+)', 1), '') AS domain
    FROM samples
)

SELECT * FROM final
