-- Grain: one cosine threshold, from 0.1 under that of the search on.
-- Source: sampled_pairs, group_sizes. Whether a pair is one of copies is what its pixels say (docs/duplicates.md).
WITH searched AS (
    SELECT min(threshold) AS threshold FROM group_sizes WHERE groups IS NOT NULL
),

looked_at AS (
    SELECT
        cosine,
        pixels_agree,
        -- Those that were looked at stand for all that were sampled on their side of the threshold.
        stands_for * sum(stands_for) OVER (PARTITION BY found IS NULL)
        / sum(stands_for) FILTER (WHERE pixels_agree IS NOT NULL) OVER (PARTITION BY found IS NULL) AS stands_for,
        stands_for AS drawn_from,
        judged,
        found
    FROM sampled_pairs
),

counted AS (
    SELECT
        group_sizes.threshold,
        coalesce(sum(drawn_from), 0) AS sampled_pairs,
        count(*) FILTER (WHERE pixels_agree IS NOT NULL) AS looked_at,
        sum(stands_for) FILTER (WHERE pixels_agree) AS agreeing,
        sum(stands_for) FILTER (WHERE pixels_agree IS NOT NULL) AS with_an_opinion,
        count(*) FILTER (WHERE judged) AS judged,
        count(*) FILTER (WHERE judged AND found) AS found,
        sum(drawn_from) FILTER (WHERE judged AND found) / sum(drawn_from) FILTER (WHERE judged) AS search_recall
    FROM group_sizes
    LEFT JOIN looked_at ON looked_at.cosine > group_sizes.threshold
    GROUP BY group_sizes.threshold
),

final AS (
    SELECT
        counted.threshold,
        counted.threshold = searched.threshold AS searched,
        counted.sampled_pairs,
        counted.looked_at,
        coalesce(counted.agreeing, 0) / nullif(counted.with_an_opinion, 0) AS precision,
        coalesce(counted.agreeing, 0) / nullif(max(counted.agreeing) OVER (), 0) AS recall,
        counted.judged,
        counted.found,
        CASE WHEN counted.judged > 0 THEN coalesce(counted.search_recall, 0) END AS search_recall,
        group_sizes.groups,
        group_sizes.images_in_groups,
        group_sizes.largest
    FROM counted
    CROSS JOIN searched
    INNER JOIN group_sizes ON group_sizes.threshold = counted.threshold
)

SELECT * FROM final
ORDER BY threshold
