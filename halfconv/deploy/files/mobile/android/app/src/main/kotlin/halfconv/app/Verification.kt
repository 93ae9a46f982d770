package halfconv.app

import android.content.Context
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.sqrt
import org.json.JSONArray
import org.json.JSONObject

/** What was found for one output: the relative L2 distance from the recorded FP32 outputs, pooled over the samples. */
class Verdict(val output: String, val distance: Double, val bound: Double, val passed: Boolean)

/**
 * Runs the recorded samples on this device. Of the recorded bounds it judges `rel_l2` of floating-point outputs and `agreement` of
 * others; a NaN or infinity that FP32 does not have fails. `verify.py` judges all.
 */
fun verifyOnDevice(context: Context, model: HalfModel): List<Verdict> {
    val recording = JSONObject(context.assets.open("samples.json").bufferedReader().use { it.readText() })
    val tolerance = recording.getJSONObject("tolerance")
    val errors = mutableMapOf<String, DoubleArray>()
    val samples = recording.getJSONArray("samples")
    for (number in 0 until samples.length()) {
        val sample = samples.getJSONObject(number)
        val given = model.run(tensors(context, sample.getJSONArray("inputs")))
        for ((name, wanted) in tensors(context, sample.getJSONArray("outputs"))) {
            val sums = errors.getOrPut(name) { DoubleArray(3) }
            add(sums, wanted, requireNotNull(given[name]) { "the model gives no output $name" })
        }
    }
    return HalfModel.OUTPUTS.map { slot ->
        val (difference, reference, broken) = requireNotNull(errors[slot.name]).toList()
        if (slot.dtype.startsWith("float")) {
            val bound = bound(tolerance, "rel_l2", slot.name, 1e-2)
            val distance = if (reference == 0.0) sqrt(difference) else sqrt(difference / reference)
            Verdict(slot.name, distance, bound, broken == 0.0 && distance <= bound)
        } else {
            val agreement = if (reference == 0.0) 1.0 else 1.0 - difference / reference
            val bound = bound(tolerance, "agreement", slot.name, 0.99)
            Verdict(slot.name, 1.0 - agreement, 1.0 - bound, broken == 0.0 && agreement >= bound)
        }
    }
}

private fun bound(tolerance: JSONObject, metric: String, output: String, otherwise: Double): Double =
    tolerance.optDouble("$metric@$output", tolerance.optDouble(metric, otherwise))

private fun tensors(context: Context, entries: JSONArray): Map<String, TensorData> =
    (0 until entries.length()).associate { place ->
        val entry = entries.getJSONObject(place)
        val dims = entry.getJSONArray("shape")
        val bytes = context.assets.open(entry.getString("file")).use { it.readBytes() }
        val shape = LongArray(dims.length()) { dims.getLong(it) }
        entry.getString("name") to TensorData(entry.getString("dtype"), shape, ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN))
    }

/** Add one sample's squared error, squared reference and broken elements; of integers, unequal elements and all elements. */
private fun add(sums: DoubleArray, wanted: TensorData, given: TensorData) {
    if (!wanted.shape.contentEquals(given.shape) || wanted.dtype != given.dtype) {
        sums[2] += 1.0
        return
    }
    if (wanted.dtype != "float32" && wanted.dtype != "float64") {
        val size = (wanted.bytes.remaining() / maxOf(1, wanted.shape.fold(1L) { product, dim -> product * dim }.toInt()))
        for (start in 0 until wanted.bytes.remaining() step maxOf(1, size)) {
            sums[1] += 1.0
            if ((0 until size).any { wanted.bytes.get(start + it) != given.bytes.get(start + it) }) sums[0] += 1.0
        }
        return
    }
    val wide = wanted.dtype == "float64"
    val count = wanted.bytes.remaining() / (if (wide) 8 else 4)
    for (place in 0 until count) {
        val reference = if (wide) wanted.bytes.getDouble(place * 8) else wanted.bytes.getFloat(place * 4).toDouble()
        val candidate = if (wide) given.bytes.getDouble(place * 8) else given.bytes.getFloat(place * 4).toDouble()
        if (!reference.isFinite()) continue
        if (!candidate.isFinite()) {
            sums[2] += 1.0
            continue
        }
        sums[0] += (candidate - reference) * (candidate - reference)
        sums[1] += reference * reference
    }
}
