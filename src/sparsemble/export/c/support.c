//@ weights
typedef struct {
    const void *values;   /* of the weights that are not 0, by output and position (channel, row, column) */
    const uint8_t *gaps;  /* zeros before each weight, see next_weight; 0: zeros are stored, too */
    const float *scales;  /* of each output, if values are whole numbers; 0: they are floats */
    const float *bias;    /* of each output */
    uint8_t value_bytes;  /* 4: float, 2: half, 1: whole number times the scale of the output */
    uint8_t gap_bits;     /* 2, 4 or 8 */
    uint8_t relu;
    int32_t channels, height, width;              /* of what is read */
    int32_t outputs, out_height, out_width;       /* of what is written */
    int32_t kernel_height, kernel_width;
    int32_t stride_down, stride_right, padding_top, padding_left, dilation_down, dilation_right;
} layer;

typedef struct {
    uint32_t code, value; /* indices of the next gap and of the next value */
    int32_t position;     /* of the weight, within its output; -1 before the first */
} reader;

/* Moves to the next weight of an output; returns 0 behind the last one. A gap is the number of zeros before a weight.
   Of the codes of gap_bits bits, the largest ends the output, and the second largest, c, means c zeros and no weight. */
static int next_weight(const layer *l, reader *r)
{
    const uint32_t end = (1u << l->gap_bits) - 1u;
    if (!l->gaps) {
        if (++r->position < l->channels * l->kernel_height * l->kernel_width)
            return 1;
        r->position = -1;
        return 0;
    }
    for (;;) {
        const uint32_t bit = r->code++ * l->gap_bits;
        const uint32_t gap = ((uint32_t)l->gaps[bit >> 3] >> (bit & 7u)) & end;
        if (gap == end) {
            r->position = -1;
            return 0;
        }
        r->position += (int32_t)gap;
        if (gap + 1u < end) {
            r->position++;
            return 1;
        }
    }
}

static float half(uint16_t bits)
{
    const uint32_t fraction = bits & 0x3ffu, exponent = (bits >> 10) & 31u;
    const uint32_t word = ((uint32_t)(bits & 0x8000u) << 16) | ((exponent + 112u) << 23) | (fraction << 13);
    float value;
    if (!exponent) {
        value = (float)fraction * 0x1p-24f;
        return bits & 0x8000u ? -value : value;
    }
    memcpy(&value, &word, sizeof value);
    return value;
}

static float weight_value(const layer *l, uint32_t index, int32_t output)
{
    if (l->value_bytes == 4)
        return ((const float *)l->values)[index];
    if (l->value_bytes == 2)
        return half(((const uint16_t *)l->values)[index]);
    return l->scales[output] * (float)((const int8_t *)l->values)[index];
}

//@ window
/* The first output whose window reads inside, where output y reads y * stride + offset. */
static int32_t first_inside(int32_t offset, int32_t stride)
{
    return offset < 0 ? (stride - 1 - offset) / stride : 0;
}

/* The first output whose window reads behind the end. */
static int32_t first_behind(int32_t offset, int32_t stride, int32_t size, int32_t outputs)
{
    const int32_t last = size - 1 - offset;
    const int32_t count = last < 0 ? 0 : last / stride + 1;
    return count < outputs ? count : outputs;
}

//@ convolution
/* Adds weight * x to the sums of one output, for the pixels whose window has the weight inside. */
static void add_products(const layer *l, const float *x, int32_t position, float weight, float *sum)
{
    const int32_t area = l->kernel_height * l->kernel_width, channel = position / area;
    const int32_t row = position % area / l->kernel_width, column = position % l->kernel_width;
    const int32_t down = row * l->dilation_down - l->padding_top;
    const int32_t right = column * l->dilation_right - l->padding_left;
    const int32_t top = first_inside(down, l->stride_down), left = first_inside(right, l->stride_right);
    const int32_t bottom = first_behind(down, l->stride_down, l->height, l->out_height);
    const int32_t end = first_behind(right, l->stride_right, l->width, l->out_width);
    int32_t i, j;
    for (i = top; i < bottom; i++) {
        const float *in = x + (channel * l->height + i * l->stride_down + down) * l->width;
        float *out = sum + i * l->out_width;
        for (j = left; j < end; j++)
            out[j] += weight * in[j * l->stride_right + right];
    }
}

/* y = relu(convolution of x + bias + residual); residual may be 0, and may be y. */
static void convolution(const layer *l, const float *x, const float *residual, float *y)
{
    const int32_t pixels = l->out_height * l->out_width;
    reader r = {0, 0, -1};
    int32_t output, i;
    for (output = 0; output < l->outputs; output++) {
        for (i = 0; i < pixels; i++)
            sums[i] = 0;
        for (; next_weight(l, &r); r.value++)
            add_products(l, x, r.position, weight_value(l, r.value, output), sums);
        for (i = 0; i < pixels; i++) {
            float result = sums[i] + l->bias[output];
            if (residual)
                result += residual[output * pixels + i];
            y[output * pixels + i] = l->relu && result < 0 ? 0 : result;
        }
    }
}

//@ linear
/* The same where there is one output pixel and every position of the kernel is inside. */
static void linear(const layer *l, const float *x, const float *residual, float *y)
{
    reader r = {0, 0, -1};
    int32_t output;
    for (output = 0; output < l->outputs; output++) {
        float result = 0;
        for (; next_weight(l, &r); r.value++)
            result += weight_value(l, r.value, output) * x[r.position];
        result += l->bias[output];
        if (residual)
            result += residual[output];
        y[output] = l->relu && result < 0 ? 0 : result;
    }
}

//@ pool
typedef struct {
    int32_t channels, height, width, out_height, out_width;
    int32_t kernel_height, kernel_width, stride_down, stride_right, padding_top, padding_left;
} window;

//@ max_pool
static void max_pool(const window *w, const float *x, float *y)
{
    int32_t c, i, j, row, column;
    for (c = 0; c < w->channels; c++, x += w->height * w->width)
        for (i = 0; i < w->out_height; i++)
            for (j = 0; j < w->out_width; j++) {
                const int32_t top = i * w->stride_down - w->padding_top, left = j * w->stride_right - w->padding_left;
                float largest = -INFINITY;
                for (row = top < 0 ? 0 : top; row < top + w->kernel_height && row < w->height; row++)
                    for (column = left < 0 ? 0 : left; column < left + w->kernel_width && column < w->width; column++)
                        if (x[row * w->width + column] > largest)
                            largest = x[row * w->width + column];
                *y++ = largest;
            }
}

//@ average_pool
static void average_pool(const window *w, const float *x, float *y)
{
    int32_t c, i, j, row, column;
    for (c = 0; c < w->channels; c++, x += w->height * w->width)
        for (i = 0; i < w->out_height; i++)
            for (j = 0; j < w->out_width; j++) {
                const int32_t top = i * w->stride_down - w->padding_top, left = j * w->stride_right - w->padding_left;
                float sum = 0;
                for (row = top < 0 ? 0 : top; row < top + w->kernel_height && row < w->height; row++)
                    for (column = left < 0 ? 0 : left; column < left + w->kernel_width && column < w->width; column++)
                        sum += x[row * w->width + column];
                *y++ = sum / (float)(w->kernel_height * w->kernel_width);
            }
}

//@ affine
/* y = relu(scale x + shift) for each channel; x may be y. */
static void affine(const float *scale, const float *shift, int relu, int32_t channels, int32_t pixels, const float *x,
                   float *y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < pixels; i++, x++, y++) {
            const float result = scale[c] * *x + shift[c];
            *y = relu && result < 0 ? 0 : result;
        }
}

//@ add
/* y = relu(a + b); a or b may be y. */
static void add(int relu, int32_t count, const float *a, const float *b, float *y)
{
    int32_t i;
    for (i = 0; i < count; i++) {
        const float result = a[i] + b[i];
        y[i] = relu && result < 0 ? 0 : result;
    }
}

//@ image
/* Bytes, row by row, a pixel's channels side by side, become scale * byte / 255 + shift, channel by channel. */
static void image(const uint8_t *pixels, const float *scale, const float *shift, float *y)
{
    int32_t c, i;
    for (c = 0; c < PREDICT_CHANNELS; c++)
        for (i = 0; i < PREDICT_HEIGHT * PREDICT_WIDTH; i++)
            *y++ = scale[c] * ((float)pixels[i * PREDICT_CHANNELS + c] / 255.0f) + shift[c];
}

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
