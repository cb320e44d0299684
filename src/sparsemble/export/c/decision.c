//@ log_softmax
static int32_t index_of_largest(const float *x)
{
    int32_t k, largest = 0;
    for (k = 1; k < PREDICT_CLASSES; k++)
        if (x[k] > x[largest])
            largest = k;
    return largest;
}

/* y = log(softmax(x)); x may be y. */
static void log_softmax(const float *x, float *y)
{
    const float largest = x[index_of_largest(x)];
    float total = 0;
    int32_t k;
    for (k = 0; k < PREDICT_CLASSES; k++) {
        y[k] = x[k] - largest;
        total += expf(y[k]);
    }
    total = logf(total);
    for (k = 0; k < PREDICT_CLASSES; k++)
        y[k] -= total;
}

//@ mean_logit
/* y = log-probabilities of the first members. */
static void combine(int members, float *y)
{
    int32_t k;
    int m;
    for (k = 0; k < PREDICT_CLASSES; k++) {
        y[k] = logits[0][k];
        for (m = 1; m < members; m++)
            y[k] += logits[m][k];
        y[k] /= (float)members;
    }
    log_softmax(y, y);
}

//@ maximum
/* y = log-probabilities of the first members; logits are log-probabilities already. */
static void combine(int members, float *y)
{
    int32_t k;
    int m;
    for (m = 0; m < members; m++)
        for (k = 0; k < PREDICT_CLASSES; k++)
            y[k] = m == 0 || logits[m][k] > y[k] ? logits[m][k] : y[k];
    log_softmax(y, y);
}

//@ mean_probability
/* y = log-probabilities of the first members; logits are log-probabilities already. */
static void combine(int members, float *y)
{
    int32_t k;
    int m;
    for (k = 0; k < PREDICT_CLASSES; k++) {
        float largest = logits[0][k], total = 0;
        for (m = 1; m < members; m++)
            if (logits[m][k] > largest)
                largest = logits[m][k];
        for (m = 0; m < members; m++)
            total += expf(logits[m][k] - largest);
        y[k] = logf(total / (float)members) + largest;
    }
}

//@ combined
static void combine_probabilities(int members)
{
    int32_t k;
    combine(members, combined);
    for (k = 0; k < PREDICT_CLASSES; k++)
        combined[k] = expf(combined[k]);
}

//@ hazard
/* The probability to stop after member m, given that none before it did. */
static float hazard(int m)
{
    float change = 0, exponent, confidence, smaller;
    int32_t k;
    combine_probabilities(m);
    confidence = combined[index_of_largest(combined)];
    for (k = 0; k < PREDICT_CLASSES; k++) {
        const float log_combined = logf(combined[k] > 1e-12f ? combined[k] : 1e-12f);
        change += combined[k] * (log_combined - log_before[k]);
        log_before[k] = log_combined;
    }
    exponent = RULE_B * (confidence * confidence - RULE_TAU_C);
    if (m > 1)
        exponent -= RULE_A * (change - RULE_TAU_U);
    smaller = expf(-fabsf(exponent));
    return exponent >= 0 ? 1 / (1 + smaller) : smaller / (1 + smaller);
}

//@ never
/* Whether to stop after member m; sets how many members answer. */
static int stop(int m)
{
    used = m;
    return m == PREDICT_MEMBERS;
}

//@ confidence
/* Whether to stop after member m; sets how many members answer. */
static int stop(int m)
{
    combine_probabilities(m);
    used = m;
    return m == PREDICT_MEMBERS || combined[index_of_largest(combined)] >= RULE_THRESHOLD;
}

//@ first_passage
/* Whether to stop after member m; sets how many members answer. */
static int stop(int m)
{
    used = m;
    return hazard(m) >= 0.5f || m == PREDICT_MEMBERS;
}

//@ die
/* Whether to stop after member m; sets how many members answer: those up to the likeliest step to stop at. */
static int stop(int m)
{
    const float h = hazard(m);
    float stop_probability;
    if (m == 1)
        survival = 1;
    stop_probability = h * survival;
    survival -= stop_probability;
    if (m == PREDICT_MEMBERS) {
        stop_probability += survival;
        survival = 0;
    }
    if (m == 1 || stop_probability > largest_stop_probability) {
        largest_stop_probability = stop_probability;
        used = m;
    }
    return m == PREDICT_MEMBERS || largest_stop_probability >= survival;
}

//@ agreement
/* Whether to stop after member m; sets how many members answer. */
static int stop(int m)
{
    float second = -1, lead;
    int32_t k, label;
    int member, votes = 0;
    combine_probabilities(m);
    label = index_of_largest(combined);
    for (k = 0; k < PREDICT_CLASSES; k++)
        if (k != label && combined[k] > second)
            second = combined[k];
    lead = combined[label] - second;
    for (member = 0; member < m; member++)
        votes += index_of_largest(logits[member]) == label;
    used = m;
    return m == PREDICT_MEMBERS || (m == 1 ? lead >= RULE_SURE : votes >= RULE_VOTES && lead >= RULE_LEAD);
}

//@ predict
int predict(const uint8_t *pixels, float *probabilities)
{
    int32_t k, label;
    int m = 0;
    do {
        run_member(m, pixels);
        m++;
    } while (!stop(m));
    run = m;
    combine(used, probabilities);
    label = index_of_largest(probabilities);
    for (k = 0; k < PREDICT_CLASSES; k++)
        probabilities[k] = expf(probabilities[k]);
    return (int)label;
}

int members_run(void)
{
    return run;
}

int answered_with(void)
{
    return used;
}
