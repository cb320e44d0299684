//@ tensor
typedef struct {
    void *data;
    float scale;  /* 0: data are floats; otherwise bytes q that mean scale * (q - zero) */
    int32_t zero;
} tensor;

static float load(tensor x, int32_t i)
{
    return x.scale == 0 ? ((const float *)x.data)[i] : x.scale * (float)(((const uint8_t *)x.data)[i] - x.zero);
}

//@ store
static void store(tensor y, int32_t i, float value)
{
    if (y.scale == 0) {
        ((float *)y.data)[i] = value;
    } else {
        const float step = rintf(value / y.scale) + (float)y.zero; /* halves to even */
        ((uint8_t *)y.data)[i] = (uint8_t)(step > 0 ? (step < 255 ? step : 255) : 0);
    }
}

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

/* Writes relu(sum + bias + residual), number i of the result; residual.data may be 0. */
static void write_result(const layer *l, int32_t output, int32_t i, float sum, tensor residual, tensor y)
{
    float result = sum + l->bias[output];
    if (residual.data)
        result += load(residual, i);
    store(y, i, l->relu && result < 0 ? 0 : result);
}

//@ weight_value
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

//@ place
/* Where a weight is used: output (i, j) reads (channel, i * stride_down + down, j * stride_right + right), which is inside
   for top <= i < bottom and left <= j < end. */
typedef struct {
    int32_t channel, down, right, top, left, bottom, end;
} place;

static place find_place(const layer *l, int32_t position)
{
    const int32_t area = l->kernel_height * l->kernel_width;
    place p;
    p.channel = position / area;
    p.down = position % area / l->kernel_width * l->dilation_down - l->padding_top;
    p.right = position % l->kernel_width * l->dilation_right - l->padding_left;
    p.top = first_inside(p.down, l->stride_down);
    p.left = first_inside(p.right, l->stride_right);
    p.bottom = first_behind(p.down, l->stride_down, l->height, l->out_height);
    p.end = first_behind(p.right, l->stride_right, l->width, l->out_width);
    return p;
}

//@ convolution
/* y = relu(convolution of x + bias + residual), one output at a time; residual may be y. */
static void convolution(const layer *l, tensor x, tensor residual, tensor y)
{
    const int32_t pixels = l->out_height * l->out_width;
    reader r = {0, 0, -1};
    int32_t output, i, j;
    for (output = 0; output < l->outputs; output++) {
        for (i = 0; i < pixels; i++)
            sums.floats[i] = 0;
        for (; next_weight(l, &r); r.value++) {
            const place p = find_place(l, r.position);
            const float weight = weight_value(l, r.value, output);
            for (i = p.top; i < p.bottom; i++) {
                const float *in = (const float *)x.data + (p.channel * l->height + i * l->stride_down + p.down) * l->width;
                float *sum = sums.floats + i * l->out_width;
                for (j = p.left; j < p.end; j++)
                    sum[j] += weight * in[j * l->stride_right + p.right];
            }
        }
        for (i = 0; i < pixels; i++)
            write_result(l, output, output * pixels + i, sums.floats[i], residual, y);
    }
}

//@ image_convolution
/* The same on the pixels themselves, where levels has the value of each byte for each channel. */
static void image_convolution(const layer *l, const uint8_t *pixels, const float *levels, tensor residual, tensor y)
{
    const int32_t count = l->out_height * l->out_width;
    reader r = {0, 0, -1};
    int32_t output, i, j;
    for (output = 0; output < l->outputs; output++) {
        for (i = 0; i < count; i++)
            sums.floats[i] = 0;
        for (; next_weight(l, &r); r.value++) {
            const place p = find_place(l, r.position);
            const float weight = weight_value(l, r.value, output), *value = levels + 256 * p.channel;
            for (i = p.top; i < p.bottom; i++) {
                const uint8_t *in = pixels + (i * l->stride_down + p.down) * l->width * l->channels + p.channel;
                float *sum = sums.floats + i * l->out_width;
                for (j = p.left; j < p.end; j++)
                    sum[j] += weight * value[in[(j * l->stride_right + p.right) * l->channels]];
            }
        }
        for (i = 0; i < count; i++)
            write_result(l, output, output * count + i, sums.floats[i], residual, y);
    }
}

//@ integer_convolution
/* The same on bytes, with weights that are whole numbers: sums are exact. */
static void integer_convolution(const layer *l, tensor x, tensor residual, tensor y)
{
    const int32_t pixels = l->out_height * l->out_width;
    reader r = {0, 0, -1};
    int32_t output, i, j;
    for (output = 0; output < l->outputs; output++) {
        const float step = l->scales[output] * x.scale;
        for (i = 0; i < pixels; i++)
            sums.integers[i] = 0;
        for (; next_weight(l, &r); r.value++) {
            const place p = find_place(l, r.position);
            const int32_t weight = ((const int8_t *)l->values)[r.value];
            for (i = p.top; i < p.bottom; i++) {
                const uint8_t *in =
                    (const uint8_t *)x.data + (p.channel * l->height + i * l->stride_down + p.down) * l->width;
                int32_t *sum = sums.integers + i * l->out_width;
                for (j = p.left; j < p.end; j++)
                    sum[j] += weight * (in[j * l->stride_right + p.right] - x.zero);
            }
        }
        for (i = 0; i < pixels; i++)
            write_result(l, output, output * pixels + i, (float)sums.integers[i] * step, residual, y);
    }
}

//@ linear
/* The same as convolution where there is one output pixel and every position of the kernel is inside. */
static void linear(const layer *l, tensor x, tensor residual, tensor y)
{
    reader r = {0, 0, -1};
    int32_t output;
    for (output = 0; output < l->outputs; output++) {
        float sum = 0;
        for (; next_weight(l, &r); r.value++)
            sum += weight_value(l, r.value, output) * ((const float *)x.data)[r.position];
        write_result(l, output, output, sum, residual, y);
    }
}

//@ integer_linear
/* The same on bytes, with weights that are whole numbers: sums are exact. */
static void integer_linear(const layer *l, tensor x, tensor residual, tensor y)
{
    reader r = {0, 0, -1};
    int32_t output;
    for (output = 0; output < l->outputs; output++) {
        int32_t sum = 0;
        for (; next_weight(l, &r); r.value++)
            sum += ((const int8_t *)l->values)[r.value] * (((const uint8_t *)x.data)[r.position] - x.zero);
        write_result(l, output, output, (float)sum * (l->scales[output] * x.scale), residual, y);
    }
}

