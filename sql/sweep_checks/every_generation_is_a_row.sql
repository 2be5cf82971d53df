-- Every model that was asked has a row for each of its pictures, numbered from 0, and no other has any.
SELECT attacks.model_id, attacks.generations, count(made.sample_index) AS rows
FROM untargeted_attacks AS attacks
FULL JOIN untargeted_generations AS made ON made.model_id = attacks.model_id
GROUP BY ALL
HAVING attacks.model_id IS NULL OR count(made.sample_index) <> attacks.generations
    OR count(DISTINCT made.sample_index) <> attacks.generations
    OR max(made.sample_index) <> attacks.generations - 1
    OR count(*) FILTER (made.status = 'failed') <> max(attacks.failed)
