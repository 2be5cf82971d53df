-- A prompt with two nearest generations: its verdicts would mix them. Or a stored one of a prompt with an image and
-- none.
SELECT generations.prompt_id
FROM generations
JOIN prompts USING (prompt_id)
GROUP BY generations.prompt_id
HAVING count(*) FILTER (generations.nearest) > 1
    OR (count(*) FILTER (generations.nearest) = 0 AND count(generations.own_l2) > 0)
